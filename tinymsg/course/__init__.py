"""What the lessons show and ask with: figures, widgets, checks of exercises, one's own photograph, a monitor."""
