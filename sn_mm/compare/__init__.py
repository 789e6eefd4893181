"""Trains a model with one norm after the other, all else equal: which norm pays for a data set?"""
