"""A model with one norm after the other, all else equal: which one pays for a data set?"""
