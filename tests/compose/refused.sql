INSERT INTO workers SELECT * FROM workers
UPDATE trials SET mean_test_score = 1
BEGIN READ WRITE; UPDATE trials SET mean_test_score = 1
BEGIN READ WRITE; DELETE FROM searches
BEGIN READ WRITE; CREATE TABLE written (a int)
BEGIN READ WRITE; DROP VIEW outside
SELECT content FROM payload_chunks
SELECT * FROM payloads
SELECT pg_read_file('/run/secrets/gridfleet_secret_key')
COPY trials TO PROGRAM 'cat'
