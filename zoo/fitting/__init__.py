"""From a folder of photographs to a tested artefact: what `zoo fit` inspects, records and shows."""
