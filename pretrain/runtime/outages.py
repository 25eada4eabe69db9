"""Wait for a storage that is down: logged, limited by `data.outage_s`, ended by stop signals."""

from kinemae.data_tools.command import Stopped
from kinemae.data_tools.heartbeat import Listener
from kinemae.pretrain.runtime.signals import StopSignals
from kinemae.pretrain.runtime.watchdog import Watchdog


class StorageWait:
    """Callback for `training_loader`: called about once a second while the next batch waits for a storage."""

    def __init__(self, watchdog: Watchdog, signals: StopSignals):
        self._watchdog = watchdog
        self._signals = signals
        self._listener = Listener()

    def __call__(self, reason: str) -> None:
        """Log the outage and restart the timer of the step, since the wait has its own limit.

        Args:
            reason: why the storage cannot be read; empty when it answers again.

        Raises:
            Stopped: a stop was requested.
        """
        self._listener.outage(reason)
        self._watchdog.renew()
        if reason and self._signals.exit_code:
            what = "stopped while a storage is down, at the last checkpoint; repeat the command to go on"
            raise Stopped(self._signals.exit_code, f"{what} ({reason})")
