"""A page opened in Chromium, and all that must not happen there."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")  # of the program


class Visit:
    """A page opened at some width, and all that must not happen there.

    Attributes:
        page: Playwright's.
        requests: addresses asked for, but for the file itself and those that hold their own data.
        errors: of the console and of scripts.
    """

    def __init__(self, chromium, path, width=1440, theme="light", **more):
        self.context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **more)
        self.page, self.requests, self.errors = self.context.new_page(), [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path.as_uri())
        own = (path.as_uri(), "data:", "blob:")
        self.is_own = lambda address: address.startswith(own)

    def close(self):
        """Ends the visit; fails if the page asked for anything or complained of anything."""
        self.context.close()
        assert [address for address in self.requests if not self.is_own(address)] == []
        assert self.errors == []
