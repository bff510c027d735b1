"""Labels of other programs' files -> rows of a list, and back."""
