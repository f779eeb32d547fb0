"""Workloads: what the model is asked, as samples whose spans are made with the text."""
