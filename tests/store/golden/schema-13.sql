BEGIN TRANSACTION;
CREATE TABLE audit (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            action TEXT NOT NULL,
            actor TEXT NOT NULL,
            key_id TEXT,
            name TEXT,
            role TEXT,
            target TEXT,
            address TEXT,
            request_id TEXT,
            status INTEGER,
            error TEXT,
            count INTEGER NOT NULL
        );
INSERT INTO "audit" VALUES(1,1700000011.0,'job.read','key','aaaaaaaa','golden user','user','11111111-1111-4111-8111-111111111111','192.0.2.1','golden request',200,NULL,1);
CREATE TABLE charges (
            job_id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            day TEXT NOT NULL,
            model TEXT NOT NULL,
            audio_seconds REAL NOT NULL
        ) WITHOUT ROWID
        ;
INSERT INTO "charges" VALUES('golden','golden','golden','golden',1.0);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "facts" VALUES('written','1700000000.0');
CREATE TABLE job_metadata (
            owner TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            seq INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
            PRIMARY KEY (owner, key, value, seq)
        ) WITHOUT ROWID
        ;
INSERT INTO "job_metadata" VALUES('aaaaaaaa','e25a45d49ece9a6d85c9849cef21c583','8cc8e5417db078a79b85bc795029121b',1);
INSERT INTO "job_metadata" VALUES('aaaaaaaa','e25a45d49ece9a6d85c9849cef21c583','8cc8e5417db078a79b85bc795029121b',4);
CREATE TABLE job_texts (
            seq INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
            content BLOB NOT NULL
        );
INSERT INTO "job_texts" VALUES(1,CAST(printf('%4096s', '') || '{"prompt":"golden prompt","file_name":"golden.wav","metadata":{"case":"golden case"},"known_speakers":["golden speaker"],"warnings":["golden warning"],"idempotency_key":"golden key"}' AS BLOB));
INSERT INTO "job_texts" VALUES(2,CAST(printf('%4096s', '') || '{"error":"golden error"}' AS BLOB));
INSERT INTO "job_texts" VALUES(4,CAST(printf('%4096s', '') || '{"file_name":"golden.mp3","hf_token":"hf_golden","metadata":{"case":"golden case"},"known_speakers":["golden speaker"]}' AS BLOB));
CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            place INTEGER NOT NULL UNIQUE,
            job_id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('Queued', 'Processing', 'Completed', 'Failed', 'Canceled')),
            options TEXT NOT NULL,
            output_format TEXT NOT NULL,
            keep_result INTEGER NOT NULL,
            file_name TEXT,
            audio_bytes INTEGER NOT NULL,
            audio_seconds REAL,
            hf_token TEXT,
            warnings TEXT NOT NULL,
            created_at REAL NOT NULL,
            started_at REAL,
            finished_at REAL,
            crashes INTEGER NOT NULL,
            attempts INTEGER NOT NULL,
            error TEXT,
            error_name TEXT NOT NULL,
            delivered_at REAL,
            idempotency_key TEXT,
            fingerprint TEXT, metadata TEXT, known_speakers TEXT NOT NULL DEFAULT '[]', render_options TEXT NOT NULL DEFAULT '{}',
            CHECK ((finished_at IS NULL) = (state IN ('Queued', 'Processing'))),
            CHECK (finished_at IS NULL OR hf_token IS NULL)
        );
INSERT INTO "jobs" VALUES(1,1,'11111111-1111-4111-8111-111111111111','aaaaaaaa','Completed','{"language":"en","model":"base"}','srt',1,NULL,32044,1.0,NULL,'[]',1700000000.0,1700000001.0,1700000002.0,0,0,NULL,'',NULL,'995740282215dcb0d52d4f384d54d8c0','print',NULL,'[]','{}');
INSERT INTO "jobs" VALUES(2,2,'22222222-2222-4222-8222-222222222222','aaaaaaaa','Failed','{}','txt',0,NULL,5,NULL,NULL,'[]',1700000003.0,1700000004.0,1700000005.0,0,3,NULL,'InvalidAudio',NULL,NULL,NULL,NULL,'[]','{}');
INSERT INTO "jobs" VALUES(3,3,'33333333-3333-4333-8333-333333333333','bbbbbbbb','Canceled','{}','txt',0,NULL,5,NULL,NULL,'[]',1700000006.0,NULL,1700000007.0,0,0,NULL,'',NULL,NULL,NULL,NULL,'[]','{}');
INSERT INTO "jobs" VALUES(4,4,'44444444-4444-4444-8444-444444444444','aaaaaaaa','Queued','{"diarize":false}','json',0,NULL,7,3.5,NULL,'[]',1700000008.0,NULL,NULL,0,1,NULL,'',NULL,NULL,NULL,NULL,'[]','{}');
CREATE TABLE "keys" (
            key_id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('user', 'admin', 'metrics', 'operator')),
            created_at REAL NOT NULL,
            revoked_at REAL,
            digest BLOB NOT NULL
        , expires_at REAL, last_used_at REAL, scopes TEXT NOT NULL DEFAULT '[]', rate TEXT, quota TEXT, old_secrets TEXT NOT NULL DEFAULT '[]');
INSERT INTO "keys" VALUES('aaaaaaaa','golden user','user',1700000000.0,NULL,X'0102',NULL,NULL,'[]',NULL,NULL,'[]');
INSERT INTO "keys" VALUES('bbbbbbbb','golden admin','admin',1700000000.5,1700000009.0,X'0304',NULL,NULL,'[]',NULL,NULL,'[]');
CREATE TABLE speakers (
            seq INTEGER PRIMARY KEY,
            speaker_id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            content BLOB NOT NULL,
            UNIQUE (owner, name)
        );
INSERT INTO "speakers" VALUES(1,'55555555-5555-4555-8555-555555555555','aaaaaaaa','c9e3f57aa389ab72e6a79b559b9ab82f',CAST(printf('%4096s', '') || '{"speaker_id":"55555555-5555-4555-8555-555555555555","owner":"aaaaaaaa","name":"golden voice","voice":{"model":"ecapa","revision":null,"samples":[{"seconds":3.0,"vector":[1.0,0.0]}]},"created_at":1700000010.0,"updated_at":1700000010.0}' AS BLOB));
CREATE TABLE stage_rates (
            model TEXT NOT NULL,
            device TEXT NOT NULL,
            stage TEXT NOT NULL,
            rate REAL NOT NULL,
            samples INTEGER NOT NULL,
            PRIMARY KEY (model, device, stage)
        ) WITHOUT ROWID
        ;
INSERT INTO "stage_rates" VALUES('base','cpu','asr',0.25,3);
CREATE TABLE transcripts (
            seq INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
            content BLOB NOT NULL
        , corrections BLOB);
INSERT INTO "transcripts" VALUES(1,CAST(printf('%4096s', '') || '{"language":"en","duration":1.0,"segments":[{"id":0,"start":0.0,"end":1.0,"text":" golden text"}],"model":"base","options":{"language":"en"}}' AS BLOB),X'7B22776F726473223A5B7B227365676D656E74223A302C2274657874223A22676F6C64656E20636F7272656374696F6E227D5D2C22737065616B657273223A7B7D7D');
CREATE TABLE usage (
            owner TEXT NOT NULL,
            day TEXT NOT NULL,
            model TEXT NOT NULL,
            requests INTEGER NOT NULL,
            jobs INTEGER NOT NULL,
            audio_seconds REAL NOT NULL,
            compute_seconds REAL NOT NULL,
            PRIMARY KEY (owner, day, model)
        ) WITHOUT ROWID
        ;
INSERT INTO "usage" VALUES('golden','golden','golden',1,1,1.0,1.0);
CREATE TABLE vocabularies (
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            content BLOB NOT NULL,
            PRIMARY KEY (owner, name)
        );
INSERT INTO "vocabularies" VALUES('aaaaaaaa','e400c30bc0c57b7de30c6b3cb756c382',CAST(printf('%4096s', '') || '{"name":"golden","terms":["golden term"]}' AS BLOB));
CREATE INDEX jobs_by_state ON jobs (state, place);
CREATE INDEX jobs_by_owner ON jobs (owner, seq);
CREATE INDEX jobs_unfinished ON jobs (owner) WHERE finished_at IS NULL;
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_delivered ON jobs (delivered_at) WHERE delivered_at IS NOT NULL;
CREATE UNIQUE INDEX jobs_idempotent ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_by_fingerprint ON jobs (owner, fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX metadata_by_job ON job_metadata (seq);
CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL;
CREATE INDEX audit_by_time ON audit (time);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'entries of the audit trail are not changed'); END;
CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit
        WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
        BEGIN SELECT RAISE(ABORT, 'entries of the audit trail are not replaced'); END;
CREATE TRIGGER audit_loses_only_its_oldest BEFORE DELETE ON audit
        WHEN OLD.time > CAST(strftime('%s', 'now') AS REAL) - 86400 OR EXISTS (SELECT 1 FROM audit WHERE seq < OLD.seq)
        BEGIN SELECT RAISE(ABORT, 'the audit trail loses only its oldest entries, after a day'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',4);
INSERT INTO "sqlite_sequence" VALUES('audit',1);
COMMIT;
PRAGMA user_version=13;
