"""The live page: what a run is doing and what has come of it so far, in a browser, refreshed by itself.

manifests, plan, ledger, heartbeats ──► watch.progress ──► state.json ─┐
manifests, a few parts ──► report: funnel and figures ──► figures.json ┴─► server ──► live.html, which asks for them

`thoughtmill watch OUTPUT` serves it on this machine until Ctrl-C. It reads, and writes nothing.
"""
