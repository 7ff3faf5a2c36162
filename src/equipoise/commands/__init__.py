"""The commands of the command line, one file each, with typed options that Python can call as well."""
