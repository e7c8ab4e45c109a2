"""Who may tell a device what to run: TUF metadata, the director's assignments, and how both are verified.

Modules, from the inside out: `metadata_set` holds what is trusted and refuses what is not; `workflow` says
which file comes next; `assignment` is the director's word to one device; `policy` knows about clocks and
being offline; `proof` is what a device signs with its own key. What people sign offline: `holders` names
keys, `plan` says who shall hold which, `ceremony` is a proposal, `signatures` counts who has signed it, and
`review` puts it into words. Nothing here does I/O: times and bytes are passed in.
"""
