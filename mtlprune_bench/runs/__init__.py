"""From a request to finished rows: experiments, stages, jobs, suites, workers."""
