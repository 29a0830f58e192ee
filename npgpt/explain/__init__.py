"""`python -m npgpt explain LAYER`: a layer's own lines, run on small numbers.

    subjects     what can be explained: functions, and small inputs for them
    trace        runs a function and notes what each of its statements makes
    values       what changed between two moments
    measure      the gradients a second time, from the forward alone
    explanation  all of it for one subject
    numbers      numbers as text, arrays as matrices
    highlight    Python source in parts that can be coloured
    terminal     an explanation as lines of text
    page         an explanation as a page of HTML
    command      the command line
"""
