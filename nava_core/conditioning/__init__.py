"""What a clip is conditioned on: words (`text`), voices (`speaker`) and the first frame (`image`)."""
