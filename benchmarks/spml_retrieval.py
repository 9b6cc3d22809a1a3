"""SPML: the labels of the 20 most similar of many segments, walked through in parts, against a full sort."""
