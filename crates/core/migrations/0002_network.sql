-- What the client said about traffic, as JSON; NULL: nothing.
ALTER TABLE sandboxes ADD COLUMN network TEXT;
