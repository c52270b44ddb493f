"kill -9 at any moment: nothing that was acknowledged is lost, the store opens again by itself, the engine resumes."
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from arcpoint_ce.learning.feedback import FeedbackStore

ROOT = Path(__file__).parents[1]
TRIALS = 24
WRITER = """
import sys
sys.path.insert(0, {root!r})
from arcpoint_ce.learning.feedback import FeedbackStore
from arcpoint_ce.routing.core import Backend, Outcome, Request
from arcpoint_ce.routing.router import Router
store, router = FeedbackStore({path!r}, queue=50_000), Router([Backend("east"), Backend("west")])
router.restore(store.state("router") or dict(turn=0, breakers={{}}))
now, last = {start}, None
print("up", flush=True)
while True:
    for _ in range(50):
        now += .01; d = router.decide(Request(tokens_in=100), now); store.decided(d)
        o = Outcome(d.backend, now, 5., now % 7 > .1, None, d.id); router.observe(o); store.ended(o)
        last = d.id
    store.put_state("router", router.memo())
    store.flush(now)
    print(last, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path, capsys):
    path, rng, start = tmp_path/"store.db", random.Random(0), 0.
    acknowledged, reopen, last_seen = [], [], 0
    for trial in range(TRIALS):
        child = subprocess.Popen([sys.executable, "-c", WRITER.format(root=str(ROOT), path=str(path), start=start)], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "up\n"
        time.sleep(rng.uniform(.02, .3))
        child.send_signal(signal.SIGKILL)
        lines = [x for x in child.stdout.read().split("\n")[:-1]]; child.wait()       # whole lines only: half of one was never said
        acknowledged += [int(x) for x in lines]
        began = time.perf_counter(); store = FeedbackStore(path); reopen.append(time.perf_counter() - began)
        ids = {d["id"] for d in store.rows("decisions")}
        lost = [x for x in acknowledged if x not in ids]
        assert not lost, f"trial {trial}: {len(lost)} acknowledged decisions are gone"
        assert len(ids) == len(store.rows("decisions")), "a decision id was given twice"
        assert {o["decision"] for o in store.rows("outcomes")} >= {x for x in acknowledged}
        if acknowledged: assert store.state("router")["turn"] >= max(acknowledged)
        start = max([d["at_s"] for d in store.rows("decisions")] or [0.]) + 1.
        store.close()
    with capsys.disabled():
        print(f"\nkilled {TRIALS}, acknowledged batches {len(acknowledged)} of 100 records, lost 0, slowest reopening {max(reopen):.3f} s")
    assert len(acknowledged) > TRIALS and max(reopen) < 5.
