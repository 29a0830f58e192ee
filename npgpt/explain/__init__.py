"""`python -m npgpt explain LAYER`: run a layer line by line on small numbers.

    subjects     what can be explained: functions, and the sizes of their inputs
    inputs       small random inputs for them
    trace        runs a function and records what each statement makes
    values       what a statement made or changed
    nested       nested mappings of parameters and gradients
    measure      measures the gradients by finite differences
    explanation  all results for one subject
    numbers      numbers as text, arrays as matrices
    highlight    Python source split into parts to colour
    wording      the sentences of terminal and page
    folding      where a wide line is broken
    arrays       arrays as lines for a terminal
    terminal     an explanation as lines of text
    page         an explanation as an HTML page
    command      the command line
"""
