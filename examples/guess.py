"""An environment of several turns: the policy guesses a number and is told higher or lower."""

from logpi.environments.multi_turn import Reply


class GuessTheNumber:
    """Tells higher from lower, for four messages at most."""

    def reset(self, seed, **columns):
        self.number, self.num_tried = seed % 100, 0
        return "Guess my number, from 0 to 99."

    def step(self, message):
        self.num_tried += 1
        guess = int(message) if message.strip().isdecimal() else -1
        if guess == self.number or self.num_tried == 4:
            return Reply(None, reward=float(guess == self.number))
        return Reply("higher" if guess < self.number else "lower", reward=-0.01)

    def scores(self):
        return {"tries": float(self.num_tried)}
