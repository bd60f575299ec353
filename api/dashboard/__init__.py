"""The dashboard: pages over what is stored, in a browser.

Pages get what they show from the store, as the routes of `/v1` do, and ask for work through those very routes. All of it
works as links and forms; htmx and scripts of our own make it quicker to use.

    page.py, assets.py, charts.py     the frame and its policy; files that pages load; plots as Vega-Lite documents
    plans.py, plan.py, compare.py     the list, one plan, two plans
    profiles.py, plan_form.py         the frontier of a profile and the slider on it; asking for a plan
    sweeps.py, jobs.py, models.py     what their names say
    about.py, refused.py              the API's own page; errors for those who read them in a browser
    pages.py                          all of them as one router
"""
