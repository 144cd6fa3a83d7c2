"""Train one user's data for one round; hold the language that server and workers share."""
