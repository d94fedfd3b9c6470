"""What the verbs print with --json: one model per verb. docs/json.md is made from them.

Within a version of a schema, fields are only added. A change that would break a reader makes the next version.
"""
