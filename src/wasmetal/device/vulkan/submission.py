"""Submissions under way, and the seconds that they took."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wasmetal.counters import Counters
from wasmetal.device.vulkan import commandbuffer
from wasmetal.device.vulkan.commands import Recording
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.errors import DeviceError


class Submissions:
    """The submissions of one device. Timestamps are read before a list runs again and overwrites them."""

    def __init__(self, device: LogicalDevice, counters: Counters) -> None:
        self._device = device
        self._counters = counters
        self._pending: list[VulkanSubmission] = []
        self._lock = threading.Lock()

    def start(self, recordings: Sequence[Recording]) -> VulkanSubmission:
        """Submit recordings, in order, as one. Raises DeviceError where one is still at work."""
        if not recordings:
            raise DeviceError("a submission needs at least one command list")
        with self._lock:
            for submission in self._pending[:]:
                if self._device.completed(submission.number):
                    self._finish(submission)
            if len(set(recordings)) < len(recordings) or any(recording.commands.pending for recording in recordings):
                raise DeviceError("a command list is still at work: wait for its submission before the next")
            number = commandbuffer.submit([recording.commands for recording in recordings])
            submission = VulkanSubmission(self, number, recordings)
            self._pending.append(submission)
            self._counters.submits += 1
            self._counters.dispatches += submission.dispatches
        return submission

    def wait(self, submission: VulkanSubmission, timeout: float | None) -> float:
        """Block until a submission has ended; return its seconds on the device."""
        self._device.wait(submission.number, timeout)
        with self._lock:
            return self._finish(submission)

    def wait_all(self) -> None:
        """Block until every submission has ended."""
        self._device.wait_all()
        with self._lock:
            for submission in self._pending[:]:
                self._finish(submission)

    def _finish(self, submission: VulkanSubmission) -> float:
        if submission.recordings:
            begin, _ = submission.recordings[0].timestamps()
            _, end = submission.recordings[-1].timestamps()
            submission.seconds = self._device.physical.seconds(begin, end)
            submission.recordings = ()
            self._pending.remove(submission)
            self._counters.device_seconds += submission.seconds
        return submission.seconds


class VulkanSubmission:
    """Command lists under way on the device."""

    def __init__(self, submissions: Submissions, number: int, recordings: Sequence[Recording]) -> None:
        self._submissions = submissions
        self.number = number
        """Its place in the order of the device's submissions."""
        self.recordings = recordings
        """What is running, kept until it has ended."""
        self.seconds = 0.0
        """The time that it took on the device, once it has ended."""
        self.dispatches = sum(recording.dispatches for recording in recordings)

    def wait(self, timeout: float | None = None) -> float:
        """Block until done; return the seconds that the device spent, from the first kernel to the end of the last.

        Raises DeviceTimeoutError after ``timeout`` seconds (the submission is then still pending) and DeviceLostError.
        """
        if self.recordings:
            return self._submissions.wait(self, timeout)
        return self.seconds
