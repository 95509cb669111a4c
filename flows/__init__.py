"""The occasions: the order of things and the forms that start them."""
