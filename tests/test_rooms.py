"Head-room in an engine, as a program would use it, does in the simulated fleet what the laboratory's own gateway does."
import pytest

from arcpoint_ce import ContextEngine
from arcpoint_ce.lab.contest import contenders, counted, ours, taught
from arcpoint_ce.lab.families import REF_PREFILL_MS, REF_TPOT_MS, Setting, World
from arcpoint_ce.lab.gateways import RoomGateway
from arcpoint_ce.lab.tuning import tuned
from arcpoint_ce.learning.rooms import head_room
from arcpoint_ce.routing.core import Outcome, Request

EPOCH_S = 1.7e9                        # a program's clock does not begin at 0


class Program(RoomGateway):
    "Uses nothing but an engine's public calls. The engine lives on from the past into the judged time."
    def __init__(self, world):
        self.__dict__.update(vars(ours(world, taught(world.setting)))); self.world, self.engine, self.seen = world, None, ()

    def start(self, backends, seed):
        self.names = [b.name for b in backends]; self.places = {n: i for i, n in enumerate(self.names)}; self.own, self.length = [0]*len(backends), 256.
        if self.engine: return
        s = self.world.setting
        self.engine = ContextEngine(backends, **head_room(s.slack*REF_TPOT_MS, s.slack*REF_PREFILL_MS*500., s.request_s, self.gauges, s.retries > 0, learn_s=1e9))

    def gauges(self, now): return {n: (g.at_s + EPOCH_S, *g[1:]) for n, g in zip(self.names, self.seen) if g}

    def send(self, call, now):
        d = call.memo = self.engine.decide(Request("", tier=call.tier, tokens_in=call.tokens_in, tokens_out=int(self.length)), now + EPOCH_S)
        self.own[self.places[d.backend]] += 1
        return self.places[d.backend]

    def again(self, call, now):
        name = self.engine.retry(call.memo, now + EPOCH_S)
        if name is not None: self.own[self.places[name]] += 1
        return -1 if name is None else self.places[name]

    def end(self, job, now, ok, error):
        self.own[job.place] -= 1; tokens = int(job.call.tokens_out) if ok else 0
        self.engine.observe(Outcome(self.names[job.place], job.start_s + EPOCH_S, (now - job.start_s)*1000., ok, error, job.call.memo.id, job.attempt, int(job.call.tokens_in), tokens))
        if ok: self.length += .01*(tokens - self.length)

    def tick(self, now, gauges): self.seen = gauges; self.engine.tick(now + EPOCH_S)


@pytest.fixture(scope="module")
def missed():
    "By contender: limits missed in four worlds whose surges keep a clock, fuller than they were tuned for."
    out = dict.fromkeys(("program", "untaught", "ours", "adaptive_least"), 0)
    for seed in (1, 2, 5, 6):
        world = World(Setting("scheduled_surge", seed, n=3000, load=1.15*tuned("scheduled_surge")["load"]))
        for name in ("program", "untaught"):
            gateway = Program(world)
            if name == "program":
                world.fleet([gateway], past=True).run(world.history())
                gateway.engine.belief.learn()
            out[name] += counted(world, world.fleet([gateway]).run(world.workload))["violations"]
        for name in ("ours", "adaptive_least"):
            hold = {}; hold["fleet"] = world.fleet(contenders(name, world, tuned("scheduled_surge")["peers"].get(name, {}).get("params", {}), hold))
            out[name] += counted(world, hold["fleet"].run(world.workload))["violations"]
    return out


def test_a_program_gets_what_was_measured(missed):
    assert missed["adaptive_least"] > 50
    assert missed["program"] < .5*missed["adaptive_least"] and missed["program"] <= missed["ours"] + 30, missed


def test_what_was_learned_is_what_pays(missed): assert missed["program"] < .6*missed["untaught"], missed
