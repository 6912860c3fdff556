"""What nodes have and what jobs need.

Holds nothing yet: until the capacity index exists, every member is offered every job, and the only attribute that is
matched is the Python minor (`scheduler.owner.OwnerCore._may_run`).
"""
