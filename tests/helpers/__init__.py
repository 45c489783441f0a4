"""What several test modules share: tiny models and rollouts, settings, run directories, and how processes start."""
