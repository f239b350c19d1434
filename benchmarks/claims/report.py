def write_reports(*a): pass
