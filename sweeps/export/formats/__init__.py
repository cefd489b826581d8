"""Formats of other trainers, a file each: it adds an ExportFormat to EXPORT_FORMATS under its own name."""
