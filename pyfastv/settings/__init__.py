"""What is done to pictures: schedules, Turbo, reducers, alone and as one value."""
