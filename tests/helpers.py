"What several test files share."

from arcpoint_ce import ContextEngine, NoBackend, Outcome, Request, RouterConfig
from arcpoint_ce.engine.engine import EngineConfig
from arcpoint_ce.lab.gateway import STEP_S
from arcpoint_ce.lab.worlds import REF_PREFILL_MS, REF_TPOT_MS


class Program:
    """A program with an engine.

    It knows nothing of the laboratory but that requests come in and answers go out.
    """

    def __init__(self, world, forecaster, epoch_s=0.0, **how):
        self.world, self.forecaster, self.epoch_s, self.how = world, forecaster, epoch_s, how

    def start(self, backends, seed):
        s, self.backends, self.seen, self.length = self.world.setting, backends, {}, 256.0
        self.engine = ContextEngine(
            backends,
            forecaster=self.forecaster,
            slo_ms=s.slack * REF_PREFILL_MS * 500,
            slo_tok_ms=s.slack * REF_TPOT_MS,
            gauges=lambda now: self.seen,
            router=RouterConfig(seed=seed, step_s=STEP_S, lease_s=20 * s.request_s),
            config=EngineConfig(learn="never"),
            **self.how,
        )
        self.every_s = self.engine.config.tick_s

    def place(self, name):
        return [b.name for b in self.backends].index(name)

    def send(self, call, now):
        asked = Request(tier=call.tier, tokens_in=call.tokens_in, tokens_out=int(self.length))
        try:
            call.memo = self.engine.decide(asked, now + self.epoch_s)
        except NoBackend:
            return -1
        return self.place(call.memo.backend)

    def again(self, call, now):
        if call.memo is None:
            return self.send(call, now)
        name = self.engine.retry(call.memo, now + self.epoch_s)
        return -1 if name is None else self.place(name)

    def progress(self, job, tokens, now):
        self.engine.progress(job.call.memo.id, tokens, now + self.epoch_s)

    def end(self, job, now, ok, error):
        name, tokens = self.backends[job.place].name, job.call.tokens_out if ok else 0
        ttft_ms = 1000.0 * job.ttft_s if ok and job.ttft_s is not None else None
        self.engine.observe(
            Outcome(
                name,
                job.start_s + self.epoch_s,
                (now - job.start_s) * 1000.0,
                ok=ok,
                error=error,
                decision=job.call.memo.id,
                attempt=job.attempt,
                tokens_in=job.call.tokens_in,
                tokens_out=tokens,
                ttft_ms=ttft_ms,
            )
        )
        if ok:
            self.length += 0.01 * (tokens - self.length)

    def cancel(self, job, now):
        if not job.call.open:
            self.engine.cancel(job.call.memo, now + self.epoch_s)

    def tick(self, now, gauges):
        self.seen = {
            b.name: (g.at_s + self.epoch_s, *g[1:]) for b, g in zip(self.backends, gauges) if g
        }
        self.engine.step(now + self.epoch_s)
