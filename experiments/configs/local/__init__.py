"""The methods of local learning after ContSup, and their baselines, in the protocol that these papers share."""
