"""Privacy accounting: events, accountants, calibration, the ledger and the guarantee statement.

Everything here works on plain numbers and plain data: no module of this package knows about
models, kernels or tensors, so a stranger can check a guarantee without any of them.

    canonical     one byte string per JSON value, and its digest
    events        what ran, as a JSON tree of mechanisms
    event_forms   the keys and numbers of such a tree, checked; the one place that builds `DpEvent`s
    accountant    epsilon of an event, and delta: the smaller of two upper bounds (pld and renyi)
    precision     PLD composition with its numerical error bounded; grid: what losses are rounded to
    mixtures      the privacy loss of Poisson batches, of one unit and of groups
    notions       one event in other words: RDP, zCDP, GDP, and what an attacker gains
    group         the event as a user with several units sees it, kept in a disk cache
    guarantees    all of these in the schema's form; tuning: what choosing among runs costs
    filters       a fixed total for runs that are chosen after a look at earlier ones
    calibration   the noise, iterations or batch size that meet a target epsilon from below
    mechanism     the promise that is wanted and the mechanism that keeps it, as plain numbers
    ledger        the append-only, hash-chained list of every access to private data
    facts         what only people know: the [statement] table
    inputs        everything that one run contributes to a statement; joint: several runs
    compared      which tuning entry covers a run that was selected
    checks        each assumption's basis, result and evidence; the claim level
    evidence      the code and the tests behind each check
    assumptions   the checks of a mechanism; declarations: of its data; tuning_checks: of the runs that
                  it was compared with; joint_checks: of all runs together
    accesses      every use of private data; definition: the definition mapped to the runs
    figures       what was accounted, and every guarantee that follows
    headline      the guarantee in a paragraph; limits: what it does not say; nist: another view
    sections      the statement's sections; sealing: its digests; public: the copy that may leave
    statement     the guarantee as data; rendering turns it into Markdown
    page          the same as one web page; pictures: where its curves and their labels stand
"""

if __name__ != "dpads.accounting":
    raise ImportError("import dpads.accounting, not accounting")
