"""Who may do what: `/admin/*` wants the admin token."""
