"""Who belongs to a mesh: its authority, the certificates of its nodes, invitations, and what is asked of whoever connects."""
