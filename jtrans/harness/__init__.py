"""What every experiment needs: config fields, data and networks from a config, a work directory, the command line."""
