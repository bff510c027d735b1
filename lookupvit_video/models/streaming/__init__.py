"""LookupViT as a recurrence: what is kept of the past, and one step."""
