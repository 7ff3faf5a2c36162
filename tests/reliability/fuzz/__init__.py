"""Hostile inputs for the command line, made from valid ones by seeded mutators, run, and judged by what must hold.

    byte_mutations    a file's bytes: flipped, cut, spliced, other encodings
    value_mutations   a value of mappings and lists: types swapped, keys renamed, bounds, huge numbers, deep nesting
    yaml_mutations    a YAML text: anchors, tags, merge keys, duplicate keys
    place_mutations   a file or folder: missing, a link to itself, a pipe, a folder in the place of a file
    word_mutations    the words of a command line
    materials         the valid inputs, made once
    kinds             what is mutated and given to which command: one input of a kind is a number and a seed
    verdict           what must hold of every input
    workers           processes that run the inputs, ended when one hangs or eats the memory
    summary           counts, and failures by their cause
    __main__          `make fuzz`

Everything is drawn from a `random.Random` of kind, seed and number: a failure is made again by its line.
"""
