"""The steps of one iteration, one file each, in the order in which data flows:

prompts → responses → judgments → response_pairs → battles → ratings → judgment_pairs

Two shapes. An ask-stage is a generator over one item: it yields requests and is sent completions. A fold-stage is a
function from records to records. Neither touches files, clocks, models or global randomness. `voice` turns a
conversation into a request.
"""
