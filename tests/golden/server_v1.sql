BEGIN TRANSACTION;
CREATE TABLE batches (
	id VARCHAR NOT NULL, 
	owner VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	endpoint VARCHAR NOT NULL, 
	input_file_id VARCHAR NOT NULL, 
	window VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	expires DOUBLE NOT NULL, 
	begun DOUBLE, 
	finalizing DOUBLE, 
	cancelling DOUBLE, 
	ended DOUBLE, 
	output_file_id VARCHAR, 
	error_file_id VARCHAR, 
	outcome VARCHAR NOT NULL, 
	total INTEGER NOT NULL, 
	completed INTEGER NOT NULL, 
	failed INTEGER NOT NULL, 
	meta JSON, 
	problems JSON, 
	PRIMARY KEY (id)
);
INSERT INTO "batches" VALUES('batch_1','ann','completed','/v1/chat/completions','file-1','24h',1700000002.0,1700086402.0,1700000003.0,NULL,NULL,1700000004.0,'file-2',NULL,'completed',1,1,0,'{"for": "test"}',NULL);
INSERT INTO "batches" VALUES('batch_2','bob','in_progress','/v1/embeddings','file-2','1h',1700000005.0,1700003605.0,NULL,NULL,NULL,NULL,NULL,NULL,'completed',2,0,0,NULL,NULL);
CREATE TABLE files (
	id VARCHAR NOT NULL, 
	owner VARCHAR NOT NULL, 
	filename VARCHAR NOT NULL, 
	purpose VARCHAR NOT NULL, 
	size_bytes INTEGER NOT NULL, 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "files" VALUES('file-1','ann','in.jsonl','batch',19,1700000000.5);
INSERT INTO "files" VALUES('file-2','bob','größe.jsonl','batch_output',3,1700000001.5);
CREATE INDEX ix_files_owner ON files (owner);
CREATE INDEX ix_batches_state ON batches (state);
CREATE INDEX ix_batches_owner ON batches (owner);
COMMIT;
PRAGMA user_version = 1;
