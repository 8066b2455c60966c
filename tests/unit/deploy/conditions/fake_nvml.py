"""A library that answers as NVML does: a code of 0 and a value, or a code that says no."""

NOT_SUPPORTED = 3


class FakeNvml:
    """Gives the values that it holds by the name of the question; has no other question."""

    def __init__(self, *, gpus=1, begins=0, **answers):
        self.gpus, self.begins, self.answers, self.open = gpus, begins, answers, 0

    def nvmlInit_v2(self):  # noqa: N802 - the library's names
        self.open += self.begins == 0
        return self.begins

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):  # noqa: N802
        return 0 if index < self.gpus else 2

    def __getattr__(self, question):
        if question not in self.answers:
            raise AttributeError(question)

        def answer(device, *rest):
            value = self.answers[question]
            value = value() if callable(value) else value
            if value is None:
                return NOT_SUPPORTED
            rest[-1]._obj.value = value
            return 0

        return answer
