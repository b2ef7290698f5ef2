"""Files and builders of files that must be refused."""
