"""What a person should look at in a data set: likely label errors, classes that look alike, one page with pictures."""
