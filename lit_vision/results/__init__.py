"""What a number is made of: result files, environment, tables and plots."""
