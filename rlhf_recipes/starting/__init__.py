"""What happens first: imports that wait until they are needed, launchers, and extensions that are compiled."""
