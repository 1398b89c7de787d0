"""Budget: from one number and the histogram of difficulty to the tier of every segment."""
