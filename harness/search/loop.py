"""The loop: strategies propose, the estimator judges, the board corrects the cost model."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from flatsat.errors import DataError, UsageError
from flatsat.harness.search.archive import pack, unpack
from flatsat.harness.search.calibration import Correction, calibrate, prediction_error
from flatsat.harness.search.costs import BoardModel, MacsModel
from flatsat.harness.search.history import Evaluated, Key, Measurement, Track
from flatsat.harness.search.rewards import make_reward
from flatsat.harness.search.seams import Fidelity
from flatsat.harness.search.strategies import make_strategy, seeds_of
from flatsat.harness.search.table import BoardTable
from flatsat.harness.search.wall import Wall
from flatsat.harness.search.whole import Ground, Whole, layers_sum, one_torch_thread

if TYPE_CHECKING:
    from flatsat.harness.search.bench import Bench
    from flatsat.harness.search.costs import CostModel
    from flatsat.harness.search.domain import Domain
    from flatsat.harness.search.estimate import NoFinetuneEstimator
    from flatsat.harness.search.seams import Strategy
    from flatsat.harness.search.settings import SearchSection
    from flatsat.harness.search.spaces import ChannelSpace
    from flatsat.progress import Progress

STATE_VERSION = 1


class SearchLoop:
    """Strategies x seeds under one budget, in batches; all of it can be saved and restored.

    Within a batch each strategy and seed makes `measure.every` evaluations; then the best
    unmeasured policies that are predicted to meet the budget are built and measured whole, beside
    the dense network, and what was measured corrects the prediction for all strategies alike.
    Strategies take turns batch by batch, so that none profits from more corrections than another.

    Attributes:
        whole: builds and measures whole candidates.
        correction: of the latency table, as followed now; None without a table.
        tracks: what each strategy and seed did.
        measured: whole candidates, in order.
        evaluations: of each track so far.
        messages: what a reader of the result should know.
    """

    def __init__(
        self,
        section: SearchSection,
        domain: Domain,
        space: ChannelSpace,
        estimator: NoFinetuneEstimator,
        bench: Bench,
        progress: Progress,
    ) -> None:
        self.section = section
        self.domain = domain
        self.whole = Whole(section, domain, space, bench, progress)
        self.tracks = [
            Track(name, seed, []) for name in section.strategies for seed in seeds_of(name, section)
        ]
        self.measured: list[Measurement] = []
        self.messages: list[str] = []
        self.correction: Correction | None = None
        self.evaluations = 0
        self._estimator = estimator
        self._progress = progress
        self._batches = 0
        self._ground: Ground | None = None
        self._wall: Wall | None = None
        self._strategies: list[Strategy] = []

    @property
    def ground(self) -> Ground:
        """What the search stands on; there after `prepare` or `restore`."""
        if self._ground is None:
            raise RuntimeError("prepare() comes first")
        return self._ground

    @property
    def wall(self) -> Wall:
        """The wall as corrected so far."""
        if self._wall is None:
            raise RuntimeError("prepare() comes first")
        return self._wall

    @property
    def finished(self) -> bool:
        """Whether every strategy has made its evaluations."""
        return self.evaluations >= self.section.episodes

    @property
    def error(self) -> float | None:
        """Median relative error of predictions made before their measurement; None before any."""
        pairs = [
            (one.predicted, one.measured)
            for one in self.measured
            if one.measured is not None and one.layers_sum is not None
        ]
        return prediction_error([p for p, _ in pairs], [m for _, m in pairs])

    def prepare(self) -> None:
        """Measure what the search stands on: single layers and the dense network.

        Raises:
            UsageError: the budget can't be met by any policy.
            InfrastructureError: the board could not run the dense network.
        """
        self._stand_on(self.whole.ground())

    def _stand_on(self, ground: Ground, correction: Correction | None = None) -> None:
        self._ground = ground
        self.correction = correction or self._corrected()
        self._wall = Wall(self.domain, self._model(self.correction), ground.limit)
        reward = make_reward(self.section.reward.kind)
        self._strategies = [
            make_strategy(track.name, self.section, self._wall, reward, track.seed)
            for track in self.tracks
        ]
        self._estimator.cost = self._wall.cost

    def _corrected(self) -> Correction | None:
        """Return what everything measured so far says of the table; None without a table."""
        table = self.ground.table
        if table is None:
            return None
        dense = layers_sum(self.domain, table, self.domain.full.tolist())
        pairs = [(dense, self.ground.reference)]
        pairs += [
            (one.layers_sum, one.measured)
            for one in self.measured
            if one.layers_sum is not None and one.measured is not None
        ]
        fitted = calibrate([total for total, _ in pairs], [measured for _, measured in pairs])
        return Correction(fitted, self.error)

    def _model(self, correction: Correction | None) -> CostModel:
        if correction is None or self.ground.table is None:
            return MacsModel(self.domain)
        error = correction.prediction_error
        return BoardModel(
            self.domain,
            self.ground.table,
            quantity=self.section.budget.quantity,
            scale=correction.calibration.scale,
            offset=correction.calibration.offset,
            relative_error=float("nan") if error is None else error,
        )

    def batch(self) -> None:
        """Make one batch of evaluations of each track, measure the best, correct the model."""
        count = min(self.section.measure.every, self.section.episodes - self.evaluations)
        with one_torch_thread():
            for track, strategy in zip(self.tracks, self._strategies, strict=True):
                started = time.process_time()
                for done in range(count):
                    self._evaluate(track, strategy)
                    self._tell_progress(track, self.evaluations + done + 1)
                track.cpu_s += time.process_time() - started
        self.evaluations += count
        self._measure_best()
        self._batches += 1

    def _evaluate(self, track: Track, strategy: Strategy) -> None:
        proposal = strategy.ask()
        estimate = self._estimator.estimate(proposal, Fidelity.NO_FINETUNE)
        reward = strategy.tell(proposal, estimate)
        track.evaluated.append(
            Evaluated(
                proposal.key,
                proposal.label,
                estimate.value,
                estimate.error,
                estimate.cost,
                reward,
            )
        )

    def _tell_progress(self, track: Track, evaluation: int) -> None:
        tracks = len(self.tracks)
        done = self.evaluations * tracks + (
            self.tracks.index(track) * (evaluation - self.evaluations)
        )
        total = self.section.episodes * tracks
        best = max(one.reward for one in track.evaluated)
        note = f"{track.name} seed {track.seed}, evaluation {evaluation}: best {best:.4f}"
        self._progress.update("search", min(done + 1, total - 1), total, note)

    def best(self, track: Track) -> int | None:
        """Return a track's best evaluation that meets the budget by the wall as it is now."""
        found = [index for other, index in self.ranked(track.name) if other is track]
        within = (one for one in found if self.wall.within(track.evaluated[one].key))
        return next(within, found[0] if found else None)

    def ranked(self, name: str) -> list[tuple[Track, int]]:
        """Return a strategy's distinct policies over all its seeds: best reward first.

        Of equal rewards the cheapest comes first: a few hundred images can't tell more apart.
        """
        found = [
            (track, index)
            for track in self.tracks
            if track.name == name
            for index in range(len(track.evaluated))
        ]

        def order(one: tuple[Track, int]) -> tuple[float, float, int, int]:
            track, index = one
            evaluated = track.evaluated[index]
            return -evaluated.reward, evaluated.cost, track.seed, index

        found.sort(key=order)
        seen: set[Key] = set()
        distinct = []
        for track, index in found:
            key = track.evaluated[index].key
            if key not in seen:
                seen.add(key)
                distinct.append((track, index))
        return distinct

    def _measure_best(self) -> None:
        if not self.section.budget.board or not self.section.measure.top:
            return
        known = {one.key for one in self.measured}
        wanted: dict[Key, tuple[Track, int]] = {}
        for name in self.section.strategies:
            fresh = [
                (track, index)
                for track, index in self.ranked(name)
                if track.evaluated[index].key not in known
                and self.wall.within(track.evaluated[index].key)
            ]
            for track, index in fresh[: self.section.measure.top]:
                wanted.setdefault(track.evaluated[index].key, (track, index))
        self.measured += self.whole.measure(
            f"batch-{self._batches}",
            list(wanted.values()),
            self.ground,
            self.wall.cost,
            rounds=self.section.measure.rounds,
        ).measurements
        self.correct()

    def correct(self) -> None:
        """Put what was measured into the cost model and give every strategy the new wall.

        A correction after which no policy could meet the budget is not followed: the wall stays,
        and the final measurements will tell.
        """
        correction = self._corrected()
        if correction is None:
            return
        cost = self._model(correction)
        try:
            self._wall = Wall(self.domain, cost, self.ground.limit)
        except UsageError as error:
            message = f"the wall was not corrected: {error.message}"
            self.messages.append(message)
            self._progress.log(message)
            return
        self.correction = correction
        self._estimator.cost = cost
        for strategy in self._strategies:
            strategy.rewall(self._wall)

    def state(self) -> bytes:
        """Return everything from which `restore` goes on to the bit."""
        ground = asdict(self.ground)
        ground["table"] = None if self.ground.table is None else self.ground.table.to_json()
        head = {
            "version": STATE_VERSION,
            "section": self.section.model_dump(mode="json"),
            "ground": ground,
            "correction": None if self.correction is None else asdict(self.correction),
            "tracks": [track.to_json() for track in self.tracks],
            "measured": [asdict(one) for one in self.measured],
            "messages": self.messages,
            "evaluations": self.evaluations,
            "batches": self._batches,
        }
        arrays = {
            f"strategy-{number}": np.frombuffer(strategy.state(), dtype=np.uint8)
            for number, strategy in enumerate(self._strategies)
        }
        return pack(json.loads(json.dumps(head)), arrays)

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: the bytes are damaged, or of another search.
        """
        head, arrays = unpack(state, "the search's checkpoint")
        if head.get("version") != STATE_VERSION or head.get("section") != json.loads(
            self.section.model_dump_json()
        ):
            raise DataError(
                "the search's checkpoint is of another search or version",
                hint="start the search anew, without --resume",
            )
        self.tracks = [Track.from_json(one) for one in head["tracks"]]
        self.measured = [Measurement.from_json(one) for one in head["measured"]]
        self.messages = list(head["messages"])
        self.evaluations = int(head["evaluations"])
        self._batches = int(head["batches"])
        for track in self.tracks:
            for one in track.evaluated:
                self._estimator.remember(one.key, one.accuracy)
        ground, correction = dict(head["ground"]), head["correction"]
        if ground["table"] is not None:
            ground["table"] = BoardTable.from_json(ground["table"])
        self._stand_on(
            Ground(**ground), None if correction is None else Correction.from_json(correction)
        )
        for number, strategy in enumerate(self._strategies):
            strategy.restore(arrays[f"strategy-{number}"].tobytes())
