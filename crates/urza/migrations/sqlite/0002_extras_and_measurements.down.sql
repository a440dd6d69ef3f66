DROP TABLE measurements;
ALTER TABLE records DROP COLUMN extras;
