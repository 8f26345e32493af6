"""Stages that look at one record at a time: each is a frozen configuration that keeps a record, changes it, or drops it with a reason."""
