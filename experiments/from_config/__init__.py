"""Turns a config into objects of kd_local: data, network, method, optimizer and options of the step."""
