"""Getting files from elsewhere: where they lie (`sources`), one over http (`http`), any (`files`), a set (`sets`)."""
