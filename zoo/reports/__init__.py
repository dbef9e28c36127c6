"""Records of measurements: files, tables, reports as Markdown and HTML, comparisons."""
